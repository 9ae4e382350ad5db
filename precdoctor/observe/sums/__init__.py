"""Sums, averages and what adds up elementwise, beside what they should be."""
