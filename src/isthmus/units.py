"""Numbers with units, printed for people."""


def format_count(number: float) -> str:
    """1234567 -> '1.23M': three significant digits and a decimal (SI) suffix, for tokens and parameters."""
    for size, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def format_bytes(number: float) -> str:
    """1234567 -> '1.23 MB': three significant digits and a decimal (SI) unit."""
    for size, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} B"


def format_duration(seconds: float) -> str:
    """3725 -> '1h02m': the two largest units that are not zero."""
    total = round(seconds)
    days, rest = divmod(total, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, seconds_left = divmod(rest, 60)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    if minutes:
        return f"{minutes}m{seconds_left:02d}s"
    return f"{seconds:.1f}s" if seconds < 9.95 else f"{total}s"
