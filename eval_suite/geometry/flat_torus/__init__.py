"""Flat tori: which one has a measured spectrum, and clouds whose long circle is shortened."""
