"""docs/ablations.md: what the runs of the ablations show, and what they do not."""


def write(*args):
    raise NotImplementedError
