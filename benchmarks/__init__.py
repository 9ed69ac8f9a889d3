"""What the README's figures come from, each a command."""
