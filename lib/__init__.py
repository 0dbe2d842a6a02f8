"""U-MAE notebooks: the few pieces that two or more notebooks need. See README.md."""
