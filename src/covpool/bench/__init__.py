"""Time, memory and accuracy of covpool's methods, beside its peers and the least possible work."""
