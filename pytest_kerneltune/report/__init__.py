"""Reports: what a run found out, as text and JSON.

A report is a function of the run's outcomes (``outcome.Outcome``: plain values) and nothing else; it measures, judges
and decides nothing, and it prints nothing itself: the plugin does. What several reports say in the same way (a
latency, a change, where a config came from, the order of kernels) stands once, in ``format``.

To add a report: write a module here with one function ``Sequence[Outcome] -> str`` (``markdown.step_summary`` is the
shortest example) and call it where the plugin calls the others. A project's own report needs no change here: it
implements the hook that the plugin calls with the same outcomes.
"""
