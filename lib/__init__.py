"""U-MAE notebooks: the pieces that two or more notebooks need. docs/architecture.md says what is where."""
