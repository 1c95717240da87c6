"""Deliveries in another shape than the demo's: a film club's ratings, a packed TSV a day, and a file of its members.

`python -m tests.end_to_end.films FOLDER FIRST LAST` writes the days from FIRST to LAST.
"""

from __future__ import annotations

import gzip
import sys
from datetime import date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

MEMBERS, FILMS, ROWS_A_DAY = 400, 120, 4_000
HOME = "Europe/Berlin"
COUNTRIES = ("DE", "AT", "CH")
DEVICES = ("tv", "phone", "tablet")


def deliver(folder: Path, first: date, last: date, zone: str = HOME) -> None:
    """Write `members.tsv`, and `<day>.tsv.gz` for each day: who watched which film when, on what, and how many stars
    it got; every fifth is not rated, and times are in seconds. Days begin at midnight in `zone`.

    Members of a country like the same films, and some members like all films more than others do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(7)
    country = draw.integers(len(COUNTRIES), size=MEMBERS)
    taste = draw.normal(size=(len(COUNTRIES), FILMS)) + draw.normal(size=FILMS)
    mood = draw.normal(scale=0.5, size=MEMBERS)
    lines = ["member\tcountry", *(f"m{number}\t{COUNTRIES[one]}" for number, one in enumerate(country))]
    (folder / "members.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        midnight = int(datetime.combine(day, time(), ZoneInfo(zone)).timestamp())
        text = "\n".join(["member\tfilm\tstars\twatched_at\tdevice", *_rows(day, midnight, taste[country], mood)])
        (folder / f"{day}.tsv.gz").write_bytes(gzip.compress(f"{text}\n".encode(), mtime=0))


def _rows(day: date, midnight: int, taste: np.ndarray, mood: np.ndarray) -> list[str]:
    draw = np.random.default_rng(day.toordinal())
    member, film = draw.integers(MEMBERS, size=ROWS_A_DAY), draw.zipf(1.3, size=ROWS_A_DAY) % FILMS
    liking = 3.2 + taste[member, film] + mood[member] + draw.normal(scale=0.7, size=ROWS_A_DAY)
    stars = np.clip(np.rint(liking), 1, 5).astype(int)
    rated = draw.random(ROWS_A_DAY) < 0.8
    device = draw.integers(len(DEVICES), size=ROWS_A_DAY)
    seconds = midnight + np.sort(draw.integers(23 * 3600, size=ROWS_A_DAY))
    return [
        f"m{member[row]}\tf{film[row]}\t{stars[row] if rated[row] else ''}\t{seconds[row]}\t{DEVICES[device[row]]}"
        for row in range(ROWS_A_DAY)
    ]


if __name__ == "__main__":
    deliver(Path(sys.argv[1]), date.fromisoformat(sys.argv[2]), date.fromisoformat(sys.argv[3]))
