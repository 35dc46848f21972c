"""Counts and times as people read them."""


def short(count: float) -> str:
    """Return a count with three digits and a unit."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= 0.9995 * unit:  # what three digits would round up to it
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def duration(seconds: float) -> str:
    """Return a duration as a person says it, in two units at most."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if hours == 0:
        return f"{minutes} min {whole % 60:02d} s"
    return f"{hours} h {minutes % 60:02d} min" if days == 0 else f"{days} d {hours % 24} h"
