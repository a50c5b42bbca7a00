"""Plans become what mergekit executes, and model directories; and what others wrote becomes recipes."""
