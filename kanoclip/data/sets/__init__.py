"""Published data sets, one file a family of layouts, and images of your own."""
