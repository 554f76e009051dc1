"""What runs inside the processes under test. On their PYTHONPATH; never imported by the product."""
