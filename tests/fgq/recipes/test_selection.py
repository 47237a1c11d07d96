"""Which of the proposed rows are taken, against errors counted one by one."""

import numpy as np
import pytest

from fgq.quantization.scheme import Granularity, WeightScheme
from fgq.recipes.moments import Collector
from fgq.recipes.rows import Grouping, nearest
from fgq.recipes.selection import best_of, matched

M, K, R = 6, 8, 2000


def moments(weights):
    x = np.random.default_rng(1).standard_normal((1, R, K)).astype(np.float32)
    collector = Collector(1, M, K)
    collector.add(x, np.einsum("mk,crk->crm", weights, x).astype(np.float32))
    return collector.moments()


def rows(granularity=Granularity.GROUP):
    weights = np.random.default_rng(0).standard_normal((M, K))
    scheme = WeightScheme(group_size=4, granularity=granularity)
    grouping = Grouping.of(scheme, 1, K)
    return weights, nearest(weights, scheme, grouping, None), grouping


@pytest.mark.parametrize("granularity", [Granularity.GROUP, Granularity.LAYER])
def test_a_row_is_taken_where_its_error_is_lower(granularity):
    weights, near, grouping = rows(granularity)
    data = moments(weights)
    first = near._replace(row_scale=near.row_scale * np.where(np.arange(M) % 2, 3.0, 1.0))
    other = near._replace(row_scale=near.row_scale * np.where(np.arange(M) < 3, 1.0, 4.0))
    better = near._replace(row_scale=near.row_scale * np.where(np.arange(M) < 3, 4.0, 1.0))
    found = best_of(first, [other, better], data, grouping)
    errors = [data.error(each.weights(grouping)[None])[0] for each in (first, other, better, found)]
    if grouping.shared:  # all rows or none
        assert errors[3].sum() == min(error.sum() for error in errors[:3])
    else:
        np.testing.assert_array_equal(errors[3], np.min(errors[:3], axis=0))


def test_nothing_proposed_changes_nothing():
    weights, first, grouping = rows()
    found = best_of(first, [], moments(weights), grouping)
    np.testing.assert_array_equal(found.weights(grouping), first.weights(grouping))


def test_matched_rows_vary_as_the_wanted_ones():
    weights, first, grouping = rows()
    data = moments(weights)
    found = matched(first, data, grouping, None)
    power = data.power[0] / R
    np.testing.assert_allclose(data.variance(found.weights(grouping)[None])[0], power, rtol=0.02)
    np.testing.assert_array_equal(found.codes, first.codes)
    least = 2 * found.row_scale
    bounded = matched(first, data, grouping, least)
    np.testing.assert_array_equal(bounded.row_scale, np.float32(bounded.row_scale))
    assert (bounded.row_scale >= least).all()
