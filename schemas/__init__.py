"""Types that every layer shares: the columns of every operator, the words for failures, the SQL views."""
