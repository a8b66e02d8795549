"""What things cost as something grows: rows of series, and a plot for each."""


def run(directory, source, quick, seconds, emit):
    """Nothing yet."""


def plots(directory, rows):
    """Nothing yet."""
    return []
