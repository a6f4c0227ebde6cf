"""What the paper did: data sets, settings, runs, records and the report made from them."""
