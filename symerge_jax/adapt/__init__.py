"""Test-time adaptation on unlabelled inputs; one method = one file, one loop (`fit`) for all."""
