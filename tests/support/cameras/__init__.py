"""Real cameras for tests: RTSP and HTTP servers in the test's own process, which a test can make misbehave."""
