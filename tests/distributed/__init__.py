"""Two processes that train one model, in each room: what they run, beside the tests of what they found."""
