"""How close a label head in answers of eight bits comes to the pooled solution, round by round."""
