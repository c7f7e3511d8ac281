"""One complete script for each guide of the documentation."""
