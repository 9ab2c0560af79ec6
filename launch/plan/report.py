"""placeholder"""


def report_html(plan: object) -> str:
    return ""
