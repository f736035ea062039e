"""One line of the doctor."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """``level`` is ``ok``, ``note``, ``warning`` or ``stuck``; ``code`` is stable and listed in ``docs/errors.md``.

    A note does not keep a network from being healthy.

    ``about`` names the one node that it speaks of, where that is so; ``advice`` says what to do.
    """

    level: str
    code: str
    message: str
    about: str = ""
    advice: str = ""
