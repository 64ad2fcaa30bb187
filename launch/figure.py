"""Figures as a reader wants them: few digits, thousands separated, a unit."""

import math

TIMES = "\u00d7"


def show_number(value: float) -> str:
    """About three significant digits: 0.0123, 7.70, 43.0, 237, 2,014, 1.20e+12."""
    size = abs(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if size == 0:
        return "0"
    if size >= 1e9:
        return f"{value:.2e}"
    if size >= 0.9995:
        return f"{value:,.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"
    return f"{value:.3g}"


def show_ratio(value: float) -> str:
    """1.04x, 2.5x, 12x, with a multiplication sign."""
    digits = 2 if value < 1.1 else 1 if value < 9.95 else 0
    return f"{value:,.{digits}f}{TIMES}"


def show_share(value: float) -> str:
    """A rate of 0-1 in percent."""
    if not math.isfinite(value):
        return show_number(value)
    return "under 0.1%" if 0 < value < 0.0005 else f"{value:.1%}"


def show_bytes(value: float) -> str:
    """MiB, or GiB from one of them on."""
    return f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.0f} MiB"


def show_seconds(value: float) -> str:
    """12 s, 3 min 20 s, 5 h 2 min."""
    seconds = round(value)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60} min"


def show_fact(value: object) -> str:
    """Any value of a settings file or an event: counts with separators, the rest as it reads."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and 1 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(show_fact(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {show_fact(item)}" for key, item in value.items())
    return str(value)
