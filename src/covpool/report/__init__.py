"""The report: one HTML page of what training runs, comparisons and analyses wrote."""
