"""What holds on a GPU: `make test-gpu`. Without one each test says so and is skipped."""
