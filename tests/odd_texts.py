"""Messages of several scripts and lengths, an empty one among them."""

TEXTS = [
    "WIN a free prize, call now!",
    "ok",
    "",
    "see you at home after dinner, I am going to be a little late tonight",
    "😀👩‍👩‍👧",
    "مرحبا بالعالم",
]
