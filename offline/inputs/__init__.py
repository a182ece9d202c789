"""What a job starts from: the user's files, checked; the clean images by share; the profile."""
