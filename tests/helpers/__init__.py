"""What tests share: tiny models, runs, launches, servers, and files shaped as official releases."""
