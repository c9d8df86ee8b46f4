"""Files and leases that anybody may have had a hand in: read, replaced, held and cleared away with care."""
