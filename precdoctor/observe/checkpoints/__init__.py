"""What a program saves and loads, beside what it trains."""
