"""What takes the place of a file that cannot be had, decided once for the workspace."""

from dataclasses import dataclass

from spamgpt.files import assets
from spamgpt.files.workspace import chosen, notice, remember


@dataclass(frozen=True)
class Choice:
    """Either `real`, which needs `files` (names in assets.ASSETS), or the bundled `stand_in`.

    `key` is what is decided ("base", "data"); `notice` is the first line of the box that says
    that the stand-in is used, `consequence` its last words.
    """

    key: str
    real: str
    stand_in: str
    files: tuple[str, ...]
    notice: str
    consequence: str

    def remembered(self) -> str | None:
        """Why the workspace uses the stand-in, as long as the real thing is not at hand."""
        known = chosen(self.key)
        if known and known["name"] == self.stand_in and not all(map(assets.available, self.files)):
            return known["reason"]
        return None

    def decide(self) -> str:
        """`real` or `stand_in`: the real thing whenever it can be had.

        Says so in a notice if it cannot, and remembers it for the workspace.
        """
        reason = self.remembered()
        if reason is None:
            try:
                for file in self.files:
                    assets.fetch(file)
            except assets.AssetError as error:
                reason = error.brief
                remember(self.key, self.stand_in, reason)
            else:
                remember(self.key, self.real, "its files are here")
                return self.real
        notice(
            f"{self.notice}\n{reason}\n{self.consequence} With internet, run\n"
            "python -m spamgpt fetch"
        )
        return self.stand_in
