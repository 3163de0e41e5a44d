"""What an answer is worth: metrics, rules, judges and functions of the user's, as a weighted sum."""
