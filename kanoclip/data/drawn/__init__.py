"""Drawn surfaces with drawn defects: data without files."""
