"""The coverage matrix: which networks it holds, how one is measured, and how the table is written."""
