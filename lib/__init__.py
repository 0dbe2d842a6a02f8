"""U-MAE notebooks: what two or more notebooks need (docs/architecture.md)."""
