"""Evidence and its diagnosis as something to read: terminal text, JSON, an HTML page. Imports no torch."""

from precdoctor.report.report import Report

__all__ = ["Report"]
