"""The study of docs/results.md: its plan, its runs and measurements, its report."""
