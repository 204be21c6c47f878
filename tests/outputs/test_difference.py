from kanoclip.outputs.difference import difference


def test_a_difference_is_the_first_one():
    assert difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ("a.c", "2", "3")
    assert difference({"a": {}}, {"a": {"b": None}}) is None
    assert difference({"tile": 1}, {}) == ("tile", "1", "not set")


def test_what_is_long_is_cut_where_both_ends_remain():
    _, before, now = difference({"root": "/data/" + "x" * 500 + "/old"}, {"root": "/data/" + "x" * 500 + "/new"})
    assert len(before) < 60
    assert (before[:6], before[-4:], now[-4:]) == ("/data/", "/old", "/new")
