"""Counts and times as people read them."""


def short(count: float) -> str:
    """Return a count with three digits and a unit."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= 0.9995 * unit:  # what three digits would round up to it
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def duration(seconds: float) -> str:
    """Return a time with two digits in the unit that suits it."""
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * unit:
            amount = seconds / unit
            return f"{amount:.1f} {name}" if amount < 9.95 else f"{amount:,.0f} {name}"
    return f"{seconds:.0f} s"
