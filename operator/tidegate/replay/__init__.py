"""`tidegate replay`: what the judge would have said of counts that were recorded."""
