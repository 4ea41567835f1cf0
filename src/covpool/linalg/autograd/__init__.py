"""How torch differentiates: each autograd function, in both modes."""
