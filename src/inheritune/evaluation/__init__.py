"""Is the small model as good as the large one?"""
