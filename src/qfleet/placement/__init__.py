"""What engines whose roles live in processes of their own are built from. Floor 4.9."""
