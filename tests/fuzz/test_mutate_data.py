import mutate_data


def test_mutated_files_are_read_rightly_or_refused_in_one_line():
    assert mutate_data.run(seed=3, count=600) == []
