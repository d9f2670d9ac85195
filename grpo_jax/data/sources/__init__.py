"""Problems, texts and conversations: a module for each place of origin."""
