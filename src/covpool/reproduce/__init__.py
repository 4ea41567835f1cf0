"""The paper's tables and figures, trained or computed anew, beside its own cells."""
