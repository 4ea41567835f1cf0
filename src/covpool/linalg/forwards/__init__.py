"""Forward algorithms: what is made of the eigenvalues, or of the matrix itself."""
