"""Remove what the notebooks made, and nothing else."""

import shutil
from pathlib import Path

from spamgpt.files.workspace import explained, workspace
from spamgpt.tasks import sms
from spamgpt.tasks.splits import SPLITS
from spamgpt.tasks.task import WRITTEN, foreign_files

MADE = ("training", "classifier", "runs")  # folders that only this series writes to
MADE_FILES = ("results.json", "experiments.csv", "choices.json", "precision.json")


def clean_workspace() -> list[Path]:
    """Remove results; returns the files in the folder of the splits that are somebody's own.

    Downloads (cache/) and tasks of your own (own/) are not touched. Raises WorkspaceError if
    something cannot be removed.
    """
    with explained("results cannot be removed from", workspace()):
        folder = sms.TASK.folder
        foreign = foreign_files(folder)
        for name in (*(f"{name}.csv" for name in SPLITS), "source.json", WRITTEN):
            if name not in foreign:
                (folder / name).unlink(missing_ok=True)
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        for name in MADE:
            shutil.rmtree(workspace() / name, ignore_errors=True)
        for name in MADE_FILES:
            (workspace() / name).unlink(missing_ok=True)
        return [folder / name for name in foreign]
