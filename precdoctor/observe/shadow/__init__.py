"""The shadow: operations in float64 beside what they are; tells who creates an error from who carries it."""
