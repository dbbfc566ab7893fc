"""From a table of runs to a scaling law: read, fit, compare, report."""
