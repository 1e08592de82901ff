"""Run folders in, tables, figures and one self-contained page out; no model is loaded."""
